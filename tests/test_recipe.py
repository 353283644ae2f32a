"""Recipes: the same sparsifier from a file, and errors that name the nearest word."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sparsity_cases import adam, batches, network, seed, train

from scisparse.errors import OptionError
from scisparse.sparsity import Recipe, Sparsifier, schedules, structures

TEXT = """
method: gmp
sparsity: 0.75          # of all weights
schedule: {cubic: {begin: 0, end: 12, every: 3}}
structure: {block: {height: 2, width: 2}}
budget: {"0": 0.5}
params: ["0", "2"]
"""


def test_equals_the_options_in_python(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(TEXT)
    recipe = Recipe.from_yaml(tmp_path / "recipe.yaml")
    assert recipe == Recipe.from_yaml(str(tmp_path / "recipe.yaml")) == Recipe.from_yaml(TEXT)
    losses = []
    for from_recipe in (True, False):
        seed()
        model = network()
        optimizer = adam(model)
        sparsifier = (
            recipe.apply(model, optimizer)
            if from_recipe
            else Sparsifier(
                model,
                optimizer,
                "gmp",
                sparsity=0.75,
                schedule=schedules.Cubic(0, 12, 3),
                structure=structures.Block(2, 2),
                budget={"0": 0.5},
            )
        )
        losses.append(train(model, optimizer, sparsifier, batches(15)))
    assert losses[0] == losses[1]


def test_round_trip() -> None:
    recipe = Recipe(method="set", sparsity=0.5, growth={"distance_prior": {"scale": 2.0}}, seed=4)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert "teleconnections" not in recipe.to_yaml()


@pytest.mark.parametrize("written", ["5e5", "5E+5", "+.5e6", "500000", "500_000.0"])
def test_numbers_are_written_as_python_does(written: str) -> None:
    recipe = Recipe.from_yaml(f"growth: {{distance_prior: {{scale: {written}}}}}\nparams: [e5]")
    assert recipe.growth == {"distance_prior": {"scale": 5e5}}
    assert recipe.params == ["e5"]


def test_whole_numbers_may_have_exponents_and_words_stay_words() -> None:
    assert Recipe.from_yaml("total_steps: 1e3").total_steps == 1000
    recipe = Recipe(params=["1e5", "a"], sparsity=1e-5)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


BAD = [
    ("sparsty: 0.5\n", "did you mean 'sparsity'"),
    ("method: rigel\n", "did you mean 'rigl'"),
    ("sparsity: high\n", "`sparsity` is 'high'; it must be of type number"),
    ("seed: true\n", "`seed` is True; it must be of type integer"),
    ("schedule: cubik\n", "did you mean 'cubic'"),
    ("schedule: {cubic: {begin: 0, ende: 5}}\n", "did you mean 'end'"),
    ("schedule: {cubic: {begin: 0}}\n", r"`schedule\.cubic`: .*end"),
    ("schedule: {cubic: {begin: 5, end: 0}}\n", "`begin` must lie before `end`"),
    ("schedule: [cubic]\n", "give a name, or one name with its arguments"),
    ("structure: blok\n", "did you mean 'block'"),
    ("growth: momentun\n", "did you mean 'momentum'"),
    ("score: size\n", "`score` is 'size'"),
    ("sparsity: 1.5\n", r"`sparsity` \(=1.5\) must lie in"),
    ("budget: unifrom\n", "did you mean 'uniform'"),
    ("budget: {'0': high}\n", r"`budget\['0'\]` \(='high'\) must lie in"),
    ("budget: {0: 0.5}\n", "`budget` names 0; names are text"),
    ("schedule: {cosine_drop: {end: abc}}\n", r"`schedule.cosine_drop.end` is 'abc'; .* integer"),
    ("schedule: {cosine_drop: {end: 9, every: 2.5}}\n", r"every` is 2.5; .* integer"),
    ("schedule: {cosine_drop: {end: 9, fraction: [1]}}\n", r"fraction` is \[1\]; .* number"),
    ("schedule: {cosine_drop: 9}\n", "`schedule.cosine_drop` is 9; give its arguments by name"),
    ("- method\n- set\n", "the recipe holds list"),
    ("method: [\n sparsity\n", "the recipe is not YAML at line"),
    ("no_such_file.yaml", "cannot read recipe 'no_such_file.yaml': No such file"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_recipes(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Recipe.from_yaml(text)


@pytest.mark.parametrize("word", ["2:4", "1:4", "16:32", "'2:4'"])
def test_n_of_m_is_a_word(word: str) -> None:
    recipe = Recipe.from_yaml(f"method: magnitude\nstructure: {word}\nseed: 12\n")
    assert recipe.structure == word.strip("'")
    assert recipe.seed == 12
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_numbers_of_numpy_are_written_as_numbers() -> None:
    recipe = Recipe(sparsity=np.linspace(0.5, 0.9, 3)[1], budget={"0": np.float64(0.25)})
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert "sparsity: 0.7\n" in recipe.to_yaml()


def test_schema_names_every_key() -> None:
    schema = Recipe.schema()
    assert set(schema["properties"]) == set(Recipe.__dataclass_fields__)
    cubic = schema["properties"]["schedule"]["anyOf"][1]["properties"]["cubic"]
    assert cubic["required"] == ["begin", "end"]
    assert schema["additionalProperties"] is False
