"""What data sets there are: their files, checksums, public origins and terms."""

from __future__ import annotations

from dataclasses import dataclass

from scisparse.errors import OptionError
from scisparse.names import choice

__all__ = ["SOURCES", "DataFile", "DataSource", "source_named"]

_RAW = "https://raw.githubusercontent.com"
_XCAST = f"{_RAW}/kjhall01/xcast/1caa286385090aa52228751833580ce4ab4cddd1/notebooks/Tools"
_IMPROVER = f"{_RAW}/metoppv/improver_test_data/c80506338cb21455d0837ef919afec41f899a733/data"
_EMOS = f"{_IMPROVER}/estimate-emos-coefficients"
_TUTORIAL = f"{_RAW}/xarray-contrib/xarray-tutorial/1c804cf7f3bf7368f8575a95083fb3dc1e7656e8/data"


@dataclass(frozen=True)
class DataFile:
    """One file of a data set.

    Parameters
    ----------
    path
        Where the file lies, relative to the data folder.
    sha256
        Checksum of its content, hexadecimal.
    url
        Where the same bytes can be downloaded; ``None`` when there is no such place.
    """

    path: str
    sha256: str
    url: str | None


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """One data set: what it is, where it comes from and on which terms."""

    name: str
    summary: str
    source: str
    origin: str
    references: str
    license: str
    files: tuple[DataFile, ...]

    def attributes(self) -> dict[str, str]:
        """Global CF attributes that every Dataset of this data set carries."""
        return {
            "Conventions": "CF-1.10",
            "title": self.summary,
            "source": f"{self.source}; files from {self.origin}",
            "references": self.references,
            "license": self.license,
        }


_NMME = DataSource(
    name="nmme_south_asia",
    summary="South Asian summer rainfall 1991-2020: 30 NMME hindcast members and CHIRPS, 1 degree",
    source="NMME hindcasts started in May (CCSM4, CanSIPS-IC3), and CHIRPS rainfall",
    origin="https://github.com/kjhall01/xcast",
    references=(
        "Kirtman et al. 2014, doi:10.1175/BAMS-D-12-00050.1; "
        "Funk et al. 2015, doi:10.1038/sdata.2015.66; "
        "Hall and Acharya 2022, doi:10.3389/fclim.2022.953262"
    ),
    license="files under MIT (kjhall01/xcast); NMME asks for acknowledgement",
    files=(
        DataFile(
            "nmme_south_asia/CCSM4.PRCP.nc",
            "3f68a58729948d723c5e9f4a1e5bd33c52b7c86be4c3c093cdb205674e5a719d",
            f"{_XCAST}/CCSM4.PRCP.nc",
        ),
        DataFile(
            "nmme_south_asia/CanSIPSIC3.PRCP.nc",
            "89390a5c098d24cd1d9b047ba296a116cd0104540c19dda8bc779fd77c415a5f",
            f"{_XCAST}/CanSIPSIC3.PRCP.nc",
        ),
        DataFile(
            "nmme_south_asia/UCSB.PRCP.nc",
            "fcae6224a7c37c017163e202fabfbe6d5bba6afe060fd5d1112274883f9d642c",
            f"{_XCAST}/UCSB.PRCP.nc",
        ),
    ),
)

_IMPROVER_SHA256 = {
    ("temp_fc", "20170602"): "f878fca6cb6b8af8967d1bcdae28d9933b27cfd25e8e9bcf93498cae3e2163df",
    ("temp_fc", "20170603"): "c72e48ae88fb3a9c909323376c20d9bcaecec5e1b55a42accdab7201ce8d7cc8",
    ("temp_fc", "20170604"): "a7bd5d01ed80297fb5b28be9a308fd8de20c162a87220be5e59c8ac3ffa800f0",
    ("temp_truth", "20170602"): "17a25550876783a88ff04e6fab55ad8924187df288897d0c12b38a68cae28290",
    ("temp_truth", "20170603"): "ee8638a56d5c8866106ed0e0e9578f391300d9271b78b49e70baeae78ebb9e2d",
    ("temp_truth", "20170604"): "9c9ad173c54991e3e2a7f28481c395d33b0a3b4cc407167c5e7b30890eb5c532",
    ("wind_fc", "20170602"): "4d6f2a70e895017464765f7c9ec1df67e4fc33992783241971a4d630177b6e08",
    ("wind_fc", "20170603"): "11e0ff3506e0456abd4b169846cf1f5bcc9596fcb50eb520ba9f68c988fa786d",
    ("wind_fc", "20170604"): "db4aa83b225fd02aa6d15b5ea1500b960d2da46378290ebba9d45b8a29c189f2",
    ("wind_truth", "20170602"): "397b0e3712041863f9d8ac45480b67162f6e740cf9b7d2e1521a6844074146e8",
    ("wind_truth", "20170603"): "1032b6e41987c08ad4caace25e182a02701177408461c7b573f3e8b304b31c16",
    ("wind_truth", "20170604"): "fe84db49d69ea62e2e82312c7b3d860c7329c627d79d76c2543d365f69d2e0d8",
}


def _improver_case(kind: str, day: str, sha256: str) -> DataFile:
    """Name a forecast or analysis of one day, here and at its origin."""
    quantity, role = kind.split("_")
    folder, variable = {
        "temp": ("normal", "temperature_at_screen_level"),
        "wind": ("truncated_normal", "horizontal_wind_speed_at_10m"),
    }[quantity]
    part, stamp = {
        "fc": ("history", f"{day}T0300Z-PT0012H"),
        "truth": ("truth", f"{day}T1500Z-PT0000H"),
    }[role]
    name = f"{stamp}-{variable}.nc"
    return DataFile(f"improver_uk/{kind}_{name}", sha256, f"{_EMOS}/{folder}/{part}/{name}")


_IMPROVER_UK = DataSource(
    name="improver_uk",
    summary="UK weather, 2 to 4 June 2017: MOGREPS-UK 12 members at T+12 and UKV analysis, 2 km",
    source="MOGREPS-UK ensemble forecasts and UKV analyses of the Met Office Unified Model",
    origin="https://github.com/metoppv/improver_test_data",
    references=(
        "Roberts et al. 2023, doi:10.1175/BAMS-D-21-0273.1; "
        "Hagelin et al. 2017, doi:10.1002/qj.3135"
    ),
    license="CC BY 4.0, Crown copyright, Met Office",
    files=(
        DataFile(
            "improver_uk/landmask.nc",
            "ff3a00a16fa94697d6e529a6f98384e4602f70a7d6ce26669c3947c8ac2e6f7e",
            f"{_EMOS}/landmask.nc",
        ),
        DataFile(
            "improver_uk/roughness_length.nc",
            "8964d00ec69f384501269e0093bb7c4684d1fd7cf292a8286ee4ea68fe3b73e4",
            f"{_IMPROVER}/estimate-samos-gam/roughness_length.nc",
        ),
        *(_improver_case(kind, day, sha256) for (kind, day), sha256 in _IMPROVER_SHA256.items()),
    ),
)

_CNRM = DataSource(
    name="cnrm_iberia",
    summary="Iberian winter days: CNRM-CM5 1982-2002 and RCP8.5 2080-2100, NCEP R1 1982-2002",
    source="CMIP5 CNRM-CM5 r1i1p1 and NCEP/NCAR reanalysis 1, daily means, converted from R files",
    origin="https://github.com/SantanderMetGroup/climate4R.datasets",
    references=(
        "Voldoire et al. 2013, doi:10.1007/s00382-011-1259-y; "
        "Kalnay et al. 1996, doi:10.1175/1520-0477(1996)077<0437:TNYRP>2.0.CO;2; "
        "Iturbide et al. 2019, doi:10.1016/j.envsoft.2018.09.009"
    ),
    license="files LGPL-3 (climate4R.datasets); CMIP5 unrestricted since 2020; NCEP R1 of NOAA",
    files=(
        DataFile(
            "cnrm_iberia/cnrm_cm5_historical_djf.nc",
            "4d9246984bcaec50e01c61f0179dee07216cc6ad8b2ef458f683691e79e2e205",
            None,
        ),
        DataFile(
            "cnrm_iberia/cnrm_cm5_rcp85_djf.nc",
            "31fa7bb7aa3daae23e5bffa854f14a58048cafb6adf5b871c02eb29936134a7b",
            None,
        ),
        DataFile(
            "cnrm_iberia/ncep_r1_djf.nc",
            "ba9a38b9ddd7c7b9257b3acb87db12f39a0c8055c591e5bde1cf2907086c8d99",
            None,
        ),
    ),
)

_ERSST = DataSource(
    name="ersst",
    summary="Sea surface temperature, monthly, 2010-01 to 2020-08, global, 2 degrees: ERSSTv5",
    source="NOAA Extended Reconstructed Sea Surface Temperature, version 5",
    origin="https://github.com/xarray-contrib/xarray-tutorial",
    references="Huang et al. 2017, doi:10.1175/JCLI-D-16-0836.1",
    license="No constraints on data access or use (NOAA)",
    files=(
        DataFile(
            "reanalysis/sst.mnmean.nc",
            "eade01e2085d841f2ff94fa6886b08a65c5018f576b066c57880726006f28ba6",
            f"{_TUTORIAL}/sst.mnmean.nc",
        ),
    ),
)

SOURCES: dict[str, DataSource] = {s.name: s for s in (_NMME, _IMPROVER_UK, _CNRM, _ERSST)}
"""Every data set by name."""


def source_named(name: str) -> DataSource:
    """Return the data set of a name.

    Raises
    ------
    OptionError
        If there is no such data set.

    Examples
    --------
    >>> source_named("ersst").files[0].path
    'reanalysis/sst.mnmean.nc'
    """
    try:
        return SOURCES[name]
    except (KeyError, TypeError):
        raise OptionError(choice("name", name, SOURCES)) from None
