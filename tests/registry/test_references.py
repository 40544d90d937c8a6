from pathlib import Path

import pytest

from models.errors import InputError
from registry.references import Reference, check_alias, check_name, parse


def test_a_reference_names_an_alias_a_version_or_a_directory(tmp_path: Path) -> None:
    assert parse("shop-query@champion") == Reference("shop-query", alias="champion")
    assert parse("shop.query_2/13") == Reference("shop.query_2", version="13")
    assert parse(str(tmp_path)) == tmp_path
    assert str(parse("shop@champion")) == "shop@champion"
    assert str(parse("shop/3")) == "shop/3"


def test_a_version_is_a_number_however_it_is_written() -> None:
    assert parse("shop/007") == Reference("shop", version="7")


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "shop",
        "shop@",
        "@champion",
        "shop/",
        "shop/latest",
        "shop/-1",
        "shop/²",
        "a b@champion",
        "../x/1",
        "/nowhere",
    ],
)
def test_anything_else_is_refused_with_the_three_forms(ref: str) -> None:
    with pytest.raises(InputError, match="NAME@alias, NAME/VERSION or a bundle's directory"):
        parse(ref)


@pytest.mark.parametrize("name", ["", "a/b", "a@b", "a b", ".hidden", "ü", "x" * 129])
def test_a_name_that_no_reference_or_file_could_hold_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="a model's name"):
        check_name(name)


@pytest.mark.parametrize("alias", ["", "latest", "v1", "1st", "a/b", "a.b"])
def test_an_alias_that_mlflow_would_refuse_is_refused(alias: str) -> None:
    with pytest.raises(InputError, match="an alias"):
        check_alias(alias)
