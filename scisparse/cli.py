"""Command line: ``scisparse demo | train | predict | evaluate | doctor``."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scisparse.errors import DataError, OptionError, ScisparseError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["main"]

app = typer.Typer(
    name="scisparse",
    help="Sparse layers for scientific machine learning: correct forecasts from netCDF to netCDF.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

# Names that remedies give the data, as in forecast.drop_vars('wind').
_DATA = re.compile(r"\b(forecast|observation|prediction|reference|data)(?=\.\w+[(\[]|\[)")

Target = Annotated[str, typer.Option(help="Variable to correct.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Where to write.")]


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"scisparse {version('scisparse')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None: ...


@app.command(epilog="Example: `scisparse demo -o demo_output`")
def demo(
    output: Output = Path("demo_output"),
    simulated: Annotated[
        bool, typer.Option(help="Use the simulated ensemble, not the real one.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes; one a core by default.")
    ] = None,
) -> None:
    """Correct a seasonal rainfall ensemble, score it and draw it (1 to 2 minutes)."""
    from scisparse.demo import run

    run(output, simulated=simulated, jobs=jobs, say=typer.echo)


@app.command(
    epilog="Example: `scisparse train ensemble.nc analysis.nc --target t2m --method emos_local`"
)
def train(
    forecast: Annotated[Path, typer.Argument(help="netCDF or Zarr with dims time, member, grid.")],
    observed: Annotated[Path, typer.Argument(help="netCDF or Zarr with dims time, grid.")],
    target: Target,
    output: Output = Path("model.safetensors"),
    method: Annotated[
        str, typer.Option(help="emos, emos_local, local or unet_local.")
    ] = "emos_local",
    distribution: Annotated[
        str, typer.Option(help="normal, truncated_normal or censored_normal.")
    ] = "normal",
    groups: Annotated[
        str | None, typer.Option(help="Coordinate along the members that tells models apart.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Train a correction on past forecasts and observations."""
    from scisparse.files import open_data
    from scisparse.postprocess import PostProcessor

    _check_output(output, forecast, observed, stores=False)
    model = PostProcessor(
        method,
        target=target,
        distribution=distribution,
        groups=groups,
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    past, seen = open_data(forecast), open_data(observed)
    with _naming(forecast=forecast, observation=observed):
        model.fit(past, seen).save(output)
    typer.echo(f"{model!r}\nwrote {output}")


@app.command(epilog="Example: `scisparse predict model.safetensors new.nc --quantiles 0.1,0.5,0.9`")
def predict(
    model: Annotated[Path, typer.Argument(help="Model that `train` wrote.")],
    forecast: Annotated[Path, typer.Argument(help="netCDF or Zarr on the grid of the training.")],
    output: Output = Path("corrected.nc"),
    members: Annotated[bool, typer.Option(help="Write corrected members.")] = False,
    quantiles: Annotated[
        str | None, typer.Option(help="Write these quantiles, separated by commas.")
    ] = None,
    thresholds: Annotated[
        str | None,
        typer.Option(help="Write probabilities of exceeding these values, separated by commas."),
    ] = None,
) -> None:
    """Correct a forecast with a trained model."""
    from scisparse.files import open_data, write_data
    from scisparse.postprocess import PostProcessor

    _check_output(output, model, forecast)
    levels = _numbers("--quantiles", quantiles, "0.1,0.5,0.9")
    limits = _numbers("--thresholds", thresholds, "20,30")
    fitted, new = PostProcessor.load(model), open_data(forecast)
    with _naming(forecast=forecast):
        corrected = fitted.predict(new, members=members, quantiles=levels, thresholds=limits)
    write_data(corrected, output)
    typer.echo(f"wrote {output}: {', '.join(map(str, corrected.data_vars))}")


@app.command(
    epilog="Example: `scisparse evaluate corrected.nc analysis.nc --reference ensemble.nc`"
)
def evaluate(
    prediction: Annotated[Path, typer.Argument(help="What `predict` wrote, or an ensemble.")],
    observed: Annotated[Path, typer.Argument(help="Observations.")],
    reference: Annotated[Path | None, typer.Option(help="Prediction to compare with.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Name of the variable, if the files hold several.")
    ] = None,
    dims: Annotated[
        str | None,
        typer.Option(
            help="Average over these dims only, separated by commas; over all by default."
        ),
    ] = None,
    estimator: Annotated[
        str | None, typer.Option(help="Of the CRPS of members: fair or standard.")
    ] = None,
    thresholds: Annotated[
        str | None,
        typer.Option(help="Score probabilities of exceeding these values, separated by commas."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the scores, netCDF or Zarr.")
    ] = None,
) -> None:
    """Score a prediction: CRPS, bias, RMSE, spread, calibration, Brier score and skill."""
    from scisparse.arrays import add_history
    from scisparse.files import open_data, write_data
    from scisparse.verification import evaluate as score

    if output is not None:
        _check_output(output, prediction, observed, *([] if reference is None else [reference]))
    compared = None if reference is None else open_data(reference)
    predicted, truth = open_data(prediction), open_data(observed)
    files = {} if reference is None else {"reference": reference}
    with _naming(prediction=prediction, observation=observed, **files):
        scores = score(
            predicted,
            truth,
            reference=compared,
            target=target,
            dims=None if dims is None else [dim.strip() for dim in dims.split(",")],
            estimator=estimator,
            thresholds=_numbers("--thresholds", thresholds, "20,30"),
        )
    for line in _lines(scores):
        typer.echo(line)
    if output is not None:
        done = f"scored by scisparse {version('scisparse')} against {observed.name}"
        write_data(add_history(scores, done, predicted.attrs), output)
        typer.echo(f"wrote {output}")


@app.command(epilog="Example: `scisparse doctor`")
def doctor() -> None:
    """Show devices, kernel backends and why one is off, and each kernel's largest error."""
    from scisparse.doctor import report

    for line in report():
        typer.echo(line)


def _lines(scores: xr.Dataset) -> Iterator[str]:
    """Numbers, one a line, for each threshold too; of other scores, the dims they have."""
    rows = []
    for name, values in scores.data_vars.items():
        if not {*values.dims} <= {"threshold"}:
            rows.append((str(name), f"by {', '.join(map(str, values.dims))}"))
            continue
        units = values.attrs.get("units", "1")
        limits = scores["threshold"].values if values.ndim else [None]
        for limit, value in zip(limits, values.values.reshape(-1), strict=True):
            label = str(name) if limit is None else f"{name} (> {limit:g})"
            rows.append((label, f"{value:12.5g} {'' if units == '1' else units}".rstrip()))
    rows.append(("weights", scores.attrs["weights"]))
    width = max(22, *(len(label) for label, _ in rows))
    for label, text in rows:
        yield f"{label:{width}s} {text}"


def _check_output(output: Path, *inputs: Path, stores: bool = True) -> None:
    """Refuse, before any work, what cannot be written, or would replace an input."""
    from scisparse.files import check_target
    from scisparse.formats import check_suffix

    check_target(output, stores=stores)
    written = output.resolve()
    for path in inputs:
        read = path.resolve()
        if read == written:
            raise DataError(f"{output}: is read as well, and would be lost; choose another output")
        if written in read.parents:
            raise DataError(
                f"{output}: holds {path}, which is read and would be lost; choose another output"
            )
        if read in written.parents:
            raise DataError(
                f"{output}: lies in {path}, which is read and would be changed; choose another "
                "output"
            )
    check_suffix(output, stores=stores)


def _numbers(option: str, text: str | None, example: str) -> list[float] | None:
    """Read an option that is numbers separated by commas, if it is given."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise OptionError(
            f"`{option}` (={text!r}) must be numbers separated by commas, such as {example}"
        ) from error


@contextmanager
def _naming(**files: Path) -> Iterator[None]:
    """Say in errors and warnings which file is meant where their remedies name its data."""
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any, **options: Any) -> None:
        usual(category(f"{message}{_meant(str(message), files)}"), category, *where, **options)

    warnings.showwarning = show
    try:
        yield
    except ScisparseError as error:
        error.add_note(_meant(str(error), files))
        raise
    finally:
        warnings.showwarning = usual


def _meant(text: str, files: Mapping[str, Path]) -> str:
    """Which files the names of data in a text stand for; `data` is that of which it tells first."""
    first = min(files, key=lambda name: f"{text} the {name}".find(f"the {name}"))
    named = [*dict.fromkeys(_DATA.findall(text))]
    told = [f"{name} = xarray.open_dataset('{files.get(name, files[first])}')" for name in named]
    return f", where {' and '.join(told)}" if told else ""


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Show what users are warned of without the line of code; other warnings are for developers."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any, **options: Any) -> None:
            if category is UserWarning:
                typer.echo(f"scisparse: warning: {' '.join(str(message).split())}", err=True)
            else:
                usual(message, category, *where, **options)

        warnings.showwarning = show
        yield


def main() -> None:
    """Run the command line; an error of the input is one line on standard error and exit code 2."""
    try:
        with _warnings_in_one_line():
            app()
    except ScisparseError as error:
        text = "".join([str(error), *getattr(error, "__notes__", ())])
        typer.echo(f"scisparse: error: {' '.join(text.split())}", err=True)
        raise SystemExit(2) from None
