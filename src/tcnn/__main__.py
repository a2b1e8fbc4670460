"""The command line: hands the functions of `tcnn.commands` and of the modules beside it to
jsonargparse, and errors to people.

Exit codes: 0 done; 1 it failed, or the answer is no; 2 the command line could not be understood;
130 interrupted. Every error is one line on stderr.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jsonargparse

import tcnn
from tcnn import (
    benchmark_commands,
    commands,
    evaluate_commands,
    report_commands,
    training_commands,
)
from tcnn.errors import TCNNError, is_out_of_memory

# Not by the functions' own names: jsonargparse looks those up in the package's root, where names
# such as `plan` would import torch.
_COMMANDS: dict[str, Callable[..., int]] = {
    "demo": commands.run_demo,
    "plan": commands.show_plan,
    "recast": commands.recast_network,
    "finetune": training_commands.finetune_network,
    "study": training_commands.run_study,
    "evaluate": evaluate_commands.evaluate_network,
    "robustness": evaluate_commands.measure_robustness,
    "benchmark": benchmark_commands.benchmark_network,
    "report": report_commands.write_report,
    "explore": report_commands.explore_run,
    "restore": commands.restore_network,
    "verify": commands.verify_networks,
}
_EXTRAS = {"timm": "models", "torchvision": "models", "PIL": "models"}  # all others: "train"


def main(args: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        args: the words after `tcnn`; None takes them from the command line.

    Returns:
        The exit code, but for words that cannot be understood, which exit at once with 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without × and α gets a question mark
            stream.reconfigure(errors="replace")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # not a line for each try of a download
    if "" not in sys.path:  # so that package.module:function may lie in the working folder
        sys.path.append("")
    parser = _parser()
    words = list(sys.argv[1:] if args is None else args)
    if not words:
        parser.print_help()
        return 2
    words = _with_values(parser, words)
    try:
        parsed = parser.parse_args(words)
    except (ValueError, OSError) as error:  # a YAML file that is no text
        parser.error(str(error))
    name = parsed.subcommand
    try:
        chosen = parser.children[name].instantiate(parsed[name])
    except ValueError as error:  # an option's value is outside its range
        parser.children[name].error(str(error))
    options = {key: value for key, value in chosen.items() if key != "config"}
    try:
        return _COMMANDS[name](**options)
    except (TCNNError, OSError) as error:
        return _fail(name, str(error))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extra = _EXTRAS.get(missing, "train")
        return _fail(
            name,
            f"Expected {missing} to be installed, but it is not: "
            f"pip install 'transformed-cnn[{extra}]'",
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(
            name,
            "Expected enough memory for this network, batch and image size, but it ran out: "
            "give a smaller batch or image size.",
        )
    except KeyboardInterrupt:
        print(f"tcnn {name}: interrupted", file=sys.stderr)
        return 130


def _with_values(parser: _Parser, words: list[str]) -> list[str]:
    """The words with "true" after each flag that stands alone, as in `--resume`, and with lists
    that are given word by word, as in `--suite fgsm --suite=pgd`, as jsonargparse takes them: the
    first in place of a file's, the others after it."""
    child = parser.children.get(words[0])
    options = {
        option: getattr(action, "_typehint", None)
        for action in (child._actions if child else [])
        for option in action.option_strings
    }
    lists = [option for option, kind in options.items() if kind in (list[str], list[int] | None)]
    words = [
        part
        for word in words
        for part in (word.split("=", 1) if word.partition("=")[0] in lists else [word])
    ]
    spelled: list[str] = []
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if options.get(word) is bool and following.startswith("--"):
            spelled += [word, "true"]
        elif word in lists and word in spelled:
            spelled.append(f"{word}+")
        elif spelled and spelled[-1] in lists and not word.startswith(("[", "--")):
            spelled.append(json.dumps([word]) if options[spelled[-1]] == list[str] else f"[{word}]")
        else:
            spelled.append(word)
    return spelled


def _fail(command: str, message: str) -> int:
    print(f"tcnn {command}: error: {' '.join(message.split())}", file=sys.stderr)
    return 1


class _Parser(jsonargparse.ArgumentParser):
    """Says what is wrong with a command line in one line, and names the nearest option."""

    children: dict[str, _Parser]  # the commands, of the parser at the top

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # jsonargparse names a command's parser "tcnn [options] COMMAND".
        where = f"tcnn {self.prog.split()[-1]}" if " " in self.prog else "tcnn"
        print(f"{where}: error: {self._plainly(' '.join(message.split()))}", file=sys.stderr)
        sys.exit(2)

    def _plainly(self, line: str) -> str:
        """jsonargparse's message in the words of all other errors; its own where it is new."""
        line = line[max(0, line.rfind("Parser key")) :]  # the innermost of nested ones
        if found := re.match(
            r'Parser key "(.+?)":.*Subtypes: [\[(](.+?)[\])] Errors:.*Given value: (.*)', line
        ):
            return f"Expected --{found[1]} to be one of {_kinds(found[2])}, but got {found[3]}."
        if found := re.match(r'Parser key "(.+?)": Expected an? (.+?)\. Got value: (.*)', line):
            return f"Expected --{found[1]} to be {_kinds(found[2])}, but got {found[3]}."
        if found := re.match(r'Parser key "(.+?)": (.*)', line):
            return f"--{found[1]}: {found[2]}"
        if found := re.search(r"required: (?:\w+\.)?(\w+)", line):
            return f"Expected {found[1].upper()}, but it is not given; see --help."
        if found := re.search(r"[Uu]nrecognized.*?(--[\w.+-]+)", line):
            return f"There is no option {found[1]}{self._nearest(found[1])}"
        if found := re.search(r"'(\w+)' does not accept option '(.+)'", line):
            return (
                f"There is no option {found[2]}{self.children[found[1]]._nearest('--' + found[2])}"
            )
        return line

    def _nearest(self, word: str) -> str:
        options = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(word, [o for o in options if not o.endswith("+")], 1, 0.5)
        return f"; the nearest is {near[0]}." if near else "; see --help."


def _kinds(text: str) -> str:
    """Types as jsonargparse writes them, for people."""
    text = text.replace("<class 'NoneType'>", "null").replace("typing.", "")
    return re.sub(r"<class '(\w+)'>", r"\1", text)


def _parser() -> _Parser:
    """The parser of the command line, and with it that of each command."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(
        prog="tcnn",
        version=tcnn.__version__,
        description="Recast the convolutions of a trained CNN as gated positional self-attention.",
        allow_abbrev=False,
    )
    subcommands: Any = parser.add_subcommands(required=True)
    parser.children = {}
    for name, command in _COMMANDS.items():
        summary = (command.__doc__ or "").partition("\n")[0]
        child = _Parser(description=summary, allow_abbrev=False)
        child.add_argument("--config", action="config", help="YAML file with any of these options.")
        child.add_function_arguments(command, as_group=False, as_positional=True)
        subcommands.add_subcommand(name, child, help=summary)
        parser.children[name] = child
    return parser


if __name__ == "__main__":
    sys.exit(main())
