"""``flanpy completion``: a script that completes commands and flags in a shell, made from the parsers themselves."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator, Mapping

from flanpy.cli.output import show

EPILOG = """\
examples:
  source <(flanpy completion bash)                                        this shell
  flanpy completion bash > /etc/bash_completion.d/flanpy                  every one
  flanpy completion zsh > /usr/local/share/zsh/site-functions/_flanpy
  flanpy completion fish > ~/.config/fish/completions/flanpy.fish
"""
BASH = """\
_flanpy() {{
    local line word="${{COMP_WORDS[COMP_CWORD]}}" way="" number
    for ((number = 1; number < COMP_CWORD; number++)); do
        case "${{COMP_WORDS[number]}}" in -*) ;; *) way="$way ${{COMP_WORDS[number]}}" ;; esac
    done
    case "${{way# }}" in
{cases}
    *) line="" ;;
    esac
    COMPREPLY=($(compgen -W "$line" -- "$word"))
}}
complete -o default -F _flanpy flanpy
"""
ZSH = """\
#compdef flanpy
autoload -U +X bashcompinit && bashcompinit
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shell."""
    parser.description = "Print a script that completes flanpy's commands and flags."
    parser.epilog = EPILOG
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    words = dict(tree())
    match arguments.shell:
        case "fish":
            show(fish(words))
        case "zsh":
            show([ZSH + bash(words)])
        case _:
            show([bash(words)])
    return 0


def tree() -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """What may follow each command: ``("lab", "up")`` -> its flags, ``()`` -> the commands."""
    from flanpy.cli.main import COMMANDS, module_name

    yield (), [*COMMANDS, "--help", "--version"]
    for name in COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(module_name(name)).add_arguments(parser)
        yield from _below((name,), parser)


def _below(way: tuple[str, ...], parser: argparse.ArgumentParser) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    words: list[str] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words += list(action.choices)
            for name, child in action.choices.items():
                yield from _below((*way, name), child)
        elif action.option_strings:
            words += [option for option in action.option_strings if option.startswith("--")]
        elif action.choices:
            words += [str(choice) for choice in action.choices]
    yield way, words


def bash(words: Mapping[tuple[str, ...], list[str]]) -> str:
    """The script for bash; zsh runs it too."""
    cases = [f'    "{" ".join(way)}") line="{" ".join(following)}" ;;' for way, following in words.items()]
    deeper = [f'    "{" ".join(way)} "*) line="{" ".join(words[way])}" ;;' for way in sorted(words, key=len, reverse=True) if way]
    return BASH.format(cases="\n".join([*cases, *deeper])).rstrip("\n")


def fish(words: Mapping[tuple[str, ...], list[str]]) -> Iterator[str]:
    """The script for fish: one line for each word, valid where its command was given."""
    yield "complete -c flanpy -f"
    for way, following in words.items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {part}" for part in way) or "__fish_use_subcommand"
        for word in following:
            what = f"-l {word[2:]}" if word.startswith("--") else f"-a {word}"
            yield f"complete -c flanpy -n '{seen}' {what}"
