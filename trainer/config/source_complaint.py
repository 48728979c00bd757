"""One complaint about a source that takes several forms, in place of one for each form that it might have been."""

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import ErrorDetails


def one_complaint(*sections: type[BaseModel]) -> WrapValidator:
    """Validates a path, several paths, or one of these sections; raises one ValueError about what was meant."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise ValueError(_complaint(value, error.errors(), sections)) from None

    return WrapValidator(check)


def _complaint(value: Any, details: Sequence[ErrorDetails], sections: Sequence[type[BaseModel]]) -> str:
    if isinstance(value, dict):
        return _about_mapping(value, details, sections)
    if isinstance(value, list) and value:
        wrong = next((entry for entry in value if not isinstance(entry, str)), value)
        return f"found {wrong!r} in a list, wanted paths"
    names = " or ".join(next(iter(section.model_fields)) for section in sections)
    return f"found {value!r}, wanted a path, a list of paths, or a mapping with {names}"


def _about_mapping(value: dict[Any, Any], details: Sequence[ErrorDetails], sections: Sequence[type[BaseModel]]) -> str:
    """Meant is the section whose first key is there, or else the one that has most of the keys."""
    meant = max(sections, key=lambda one: (next(iter(one.model_fields)) in value, len(one.model_fields.keys() & value)))
    keys = f"Keys here: {', '.join(sorted(meant.model_fields))}"
    for key in value:
        if key not in meant.model_fields:
            close = difflib.get_close_matches(str(key), meant.model_fields, n=1, cutoff=0.5)
            return f"{key}: unknown key. {f'Did you mean {close[0]}? ' if close else ''}{keys}"
    detail = next(one for one in details if one["loc"][0] == meant.__name__)
    key = ".".join(map(str, detail["loc"][1:]))
    if detail["type"] == "missing":
        return f"{key}: missing. {keys}"
    return f"{key}: found {detail['input']!r}, wanted {detail['msg'].removeprefix('Input should be ')}"
