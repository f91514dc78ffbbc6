"""From a function to its command line: the parser is made from the function's signature and docstring.

A positional parameter is a positional argument, a keyword-only parameter `name` is the option `--name` (`class_` is
`--class`, whose name Python keeps for itself), and one without a default must be given. `bool` is a switch, `Literal`
a choice, `list` takes several values and may be repeated, and every other type is called with the text. A parameter
whose type is a dataclass stands for the options of that dataclass, which several commands share. Values of
`Annotated[list[tuple[str, str]], ("a", "b")]` come from several options, `--a` and `--b`, each as a pair of option and
text, in the order in which they were given.

The docstring's first part describes the command, `Args:` describes its arguments as `name (METAVAR): text`, and what
stands under `Examples:` follows the list of arguments.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from functools import partial
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

_SECTION = re.compile(r"^(Args|Attributes|Examples):\n", re.MULTILINE)
_ARGUMENT = re.compile(r"^(\w+)(?: \((.+?)\))?: (.+(?:\n +.+)*)", re.MULTILINE)


class _Formatter(argparse.HelpFormatter):
    """Fills every paragraph by itself, and leaves the lines of examples alone."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        paragraphs = text.split("\n\n")
        return "\n\n".join(part if "\n    " in part else fill(part, width, indent) for part in paragraphs)


def parser_of(function: Callable, prog: str) -> argparse.ArgumentParser:
    """The parser of a function's arguments; what it parsed names the function, too."""
    parser = argparse.ArgumentParser(prog, **_about(function))
    _add_arguments(parser, function)
    parser.set_defaults(function=function)
    return parser


def parser_of_words(functions: Iterable[Callable], prog: str, description: str) -> argparse.ArgumentParser:
    """The parser of a command whose first argument is the name of the function that it calls."""
    parser = argparse.ArgumentParser(prog, description=description, formatter_class=_Formatter)
    words = parser.add_subparsers(required=True, metavar="WORD")
    for function in functions:
        word = words.add_parser(function.__name__, help=summary(function), **_about(function))
        _add_arguments(word, function)
        word.set_defaults(function=function)
    return parser


def arguments_of(function: Callable, parsed: dict[str, Any]) -> dict[str, Any]:
    """What to call the function with: what was given; its own defaults stand for the rest."""
    hints, arguments = get_type_hints(function), {}
    for name in inspect.signature(function).parameters:
        if is_dataclass(hints[name]):
            arguments[name] = hints[name](**arguments_of(hints[name], parsed))
        elif name in parsed:
            arguments[name] = parsed[name]
    return arguments


def sections(function: Callable) -> dict[str, str]:
    """The parts of a docstring by their headings; the first has none."""
    first, *rest = _SECTION.split(inspect.getdoc(function))
    return {"": first.strip()} | {heading: body.rstrip() for heading, body in zip(rest[::2], rest[1::2], strict=True)}


def argument_texts(function: Callable) -> dict[str, tuple[str, str]]:
    """What a docstring says of each argument: (metavar, text) by name."""
    texts = sections(function)
    described = inspect.cleandoc("\n" + (texts.get("Args") or texts.get("Attributes") or ""))
    return {name: (metavar, " ".join(text.split())) for name, metavar, text in _ARGUMENT.findall(described)}


def summary(function: Callable) -> str:
    """The first line of a docstring, as an entry of a list."""
    return inspect.getdoc(function).partition("\n")[0].removesuffix(".")


def _about(function: Callable) -> dict[str, Any]:
    """What a parser says besides its arguments."""
    text = sections(function)
    examples = f"examples:\n{text['Examples']}" if "Examples" in text else None
    return {"description": text[""], "epilog": examples, "formatter_class": _Formatter}


def _add_arguments(parser: argparse.ArgumentParser, function: Callable) -> None:
    helps, hints = argument_texts(function), get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        if is_dataclass(hint):
            _add_arguments(parser, hint)
        elif get_origin(hint) is Annotated:
            for option in hint.__metadata__[0]:
                pair = {"action": "append", "type": partial(_pair, option)}
                parser.add_argument(f"--{option}", dest=name, **pair, **_described(*helps[option]))
        else:
            _add_argument(parser, parameter, hint, *helps[name])


def _add_argument(parser, parameter: inspect.Parameter, hint, metavar: str, text: str) -> None:
    required = parameter.default is parameter.empty
    positional = parameter.kind is not parameter.KEYWORD_ONLY
    if NoneType in get_args(hint):
        (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
    many = get_origin(hint) is list
    if many:
        (hint,) = get_args(hint)
    text = text.removesuffix(".")
    if not required and parameter.default not in (None, ()) and hint is not bool:
        default = " ".join(map(str, parameter.default)) if many else parameter.default
        text += f" (default: {default})"
    options = _described(metavar, text)
    if hint is bool:
        options["action"] = "store_true"
    elif get_origin(hint) is Literal:
        options |= {"choices": get_args(hint), "type": type(get_args(hint)[0])}
    else:
        options["type"] = hint
    if many:
        options["nargs"] = "+" if required or not positional else "*"
    if positional:
        parser.add_argument(parameter.name, **options)
        return
    if many:
        options["action"] = "extend"
    parser.add_argument(f"--{parameter.name.rstrip('_')}", dest=parameter.name, required=required, **options)


def _described(metavar: str, text: str) -> dict[str, Any]:
    """What every argument has; one that is not given is absent from what was parsed."""
    return {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")} | ({"metavar": metavar} if metavar else {})


def _pair(option: str, text: str) -> tuple[str, str]:
    return option, text
