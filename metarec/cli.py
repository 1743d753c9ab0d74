"""The command line: a thin face of `metarec.experiment`, `metarec.artifact` and the plugins.

What is heavy (torch and the plugins) is imported by the command that needs it, so that help comes at once.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import entry_points
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from metarec import __version__
from metarec.config import Choice, RunConfig, read_toml
from metarec.errors import ConfigError, DataError, MetarecError, PluginError, unknown_name

if TYPE_CHECKING:
    from metarec.options import Option
    from metarec.pluginmanager import PluginManager, Registry
    from metarec.serving import Newcomer, Reason, Recommendation
    from metarec.testing.oracles import Check

app = typer.Typer(
    help="Recommenders that learn to learn: what should you use for cold start on your data?",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]  # typer gives its base no public name


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program. A mistake of the user ends it with one line on standard error and exit code 2."""
    warnings.showwarning = _show_warning
    try:
        rest = _load_plugins(sys.argv[1:] if arguments is None else arguments)
        sys.exit(app(rest or ["--help"], prog_name="metarec", standalone_mode=False) or 0)
    except MetarecError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except _USAGE_ERROR as error:
        _fail(" ".join(error.format_message().split()))  # type: ignore[attr-defined]
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _load_plugins(arguments: Sequence[str]) -> list[str]:
    """Load the plugins that `--plugin` names, add all plugins' commands, and return the other arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--plugin", action="append", default=[], type=Path)
    try:
        known, rest = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(f"--plugin: {error.message}") from None
    for path in known.plugin:
        _plugins().register_file(path)
    if known.plugin or entry_points(group="metarec"):  # none of our own plugins has a command
        _add_commands(_plugins().commands)
    return rest


def _add_commands(commands: Registry) -> None:
    own = {command.name or getattr(command.callback, "__name__", "") for command in app.registered_commands}
    for name, function in commands.items():
        if name in own:
            raise PluginError(f"command {name!r} of plugin {commands.owner(name)!r} is one of metarec's own")
        app.command(name)(function)


def _plugins() -> PluginManager:
    from metarec.pluginmanager import plugin_manager

    return plugin_manager()


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"metarec {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    plugin: Annotated[
        list[Path] | None, typer.Option(metavar="FILE.py", help="Load a plugin from a file; may be repeated.")
    ] = None,
) -> None:
    pass


@app.command()
def run(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG.toml", help="What to do; the options override it.", show_default=False
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Data set: metarec list datasets.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Where it is; without a name: a table of ratings.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(metavar="NAME", help="How to split it.")] = None,
    algorithms: Annotated[str | None, typer.Option(metavar="A,B", help="What to compare.")] = None,
    scenarios: Annotated[
        str | None, typer.Option(metavar="A,B", help="Some of warm, new-user, new-item, new-both.")
    ] = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="A,B", help="What to measure, such as rmse,ndcg_linear@5.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(metavar="N", help="One split and one fit of each; may be repeated.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="Where to compute: cpu, cuda, …")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to put reports and artifacts.")
    ] = None,
) -> None:
    """Compare algorithms on data: which one for new users, new items, or both?

    Without arguments: all floors and bayesian on the data set that comes with metarec.
    """
    configured = RunConfig.of(read_toml(config), source=str(config)) if config else RunConfig()
    given = {
        "dataset": _dataset(configured, dataset, data),
        "protocol": protocol and _chosen(protocol, [configured.protocol]),
        "algorithms": algorithms
        and [_chosen(name, configured.algorithms or ()) for name in _names(algorithms)],
        "scenarios": scenarios and _names(scenarios),
        "metrics": metrics and _names(metrics),
        "seeds": seed or None,
        "device": device,
        "out": out,
    }
    overridden = {name: value for name, value in given.items() if value is not None}
    settings = RunConfig.of({**dict(configured), **overridden}, source="options")

    from metarec.evaluation import print_summary
    from metarec.experiment import Experiment
    from metarec.progress import Bars

    progress = Bars()
    experiment = Experiment(settings, plugins=_plugins(), progress=progress)
    with progress:
        report = experiment.run()
    print_summary(report, Console())  # before the writing, which may fail
    with progress:
        experiment.write(report)
    if settings.out is not None:
        print(
            f"\nReports and artifacts are in {settings.out}. Next: metarec recommend {settings.out}/artifacts/NAME"
        )


def _dataset(configured: RunConfig, name: str | None, path: Path | None) -> Choice | str | None:
    """The data set of the options `--dataset` and `--data`, which keep what they do not name of the configured one."""
    if path is None:
        return name and _chosen(name, [configured.dataset])
    before = configured.dataset if "dataset" in configured.model_fields_set else Choice(name="table")
    chosen = Choice(name=name) if name not in (None, before.name) else before
    return Choice(name=chosen.name, options={**chosen.options, "path": str(path)})


def _chosen(name: str, configured: Iterable[Choice]) -> Choice | str:
    """The thing of this name, with the options that the configuration has for it."""
    return next((choice for choice in configured if choice.name == name), name)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@app.command()
def recommend(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="Folder of a fitted artifact.")],
    rate: Annotated[
        list[str] | None,
        typer.Option(metavar="ITEM=VALUE", help="A rating, by id or title; may be repeated."),
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="What is known of the newcomer; may be repeated."),
    ] = None,
    k: Annotated[int, typer.Option("-k", metavar="N", help="How many.")] = 10,
    side: Annotated[
        Literal["user", "item"],
        typer.Option(metavar="SIDE", help="Whether the newcomer is a user or an item."),
    ] = "user",
    device: Annotated[str, typer.Option(metavar="NAME", help="Where to compute: cpu, cuda, …")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend to a newcomer, with ± and the ratings that caused it."""
    ratings: dict[str, float] = {}
    for name, value in _pairs(rate, "--rate"):
        if name in ratings:
            raise DataError(f"--rate {name} is given twice")
        ratings[name] = _number(value, f"--rate {name}")
    attributes = _grouped(_pairs(attribute, "--attribute"))

    from metarec.artifact import load

    recommender = load(artifact, device=device, plugins=_plugins())
    newcomer = recommender.adapt(ratings, attributes, side=side)
    for text in recommender.unseen(attributes, side=side):
        warnings.warn(text, stacklevel=1)
    recommended = newcomer.recommend(k)
    if as_json:
        print(json.dumps([_plain(one) for one in recommended], indent=2, ensure_ascii=False))
    else:
        Console().print(_recommendations(newcomer, recommended))
        if recommender.algorithm.ranks_by == "choice":
            print(
                f"\nLikeliest to be chosen first; the score is the rating to expect from a {side} who does."
            )


def _plain(one: Recommendation) -> dict[str, Any]:
    return {**vars(one), "because": [reason._asdict() for reason in one.because]}


def _pairs(texts: Iterable[str] | None, option: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts or ():
        name, equals, value = text.rpartition("=") if option == "--rate" else text.partition("=")
        if not equals or not name:
            raise DataError(
                f"{option} is {text!r}, expected {'ITEM' if option == '--rate' else 'NAME'}=VALUE"
            )
        pairs.append((name, value))
    return pairs


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, str | list[str]]:
    """Values by name; the values of a name that is given several times are a list."""
    grouped: dict[str, list[str]] = {}
    for name, value in pairs:
        grouped.setdefault(name, []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in grouped.items()}


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{what} is {text!r}, expected a number") from None


def _recommendations(newcomer: Newcomer, recommended: Sequence[Recommendation]) -> Table:
    return _table(
        [
            {
                "id": str(one.id) if str(one.id) != one.title else "",
                newcomer.partners.side: "\n".join([one.title, *map(_because, one.because[:3])]),
                "score": f"{one.score:.2f}",
                "±": _figure(one.deviation),
                "of it unknown": _figure(one.unknown),
            }
            for one in recommended
        ],
        fixed=("id", "score", "±", "of it unknown"),
    )


def _because(reason: Reason) -> str:
    return f"  {reason.contribution:+.2f} because of {reason.title}"


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Algorithms.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All algorithms.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Hold algorithms to answers that are known without them: closed forms, autograd, exact posteriors.

    Ends with code 1 where one fails.
    """
    from metarec.progress import Bars
    from metarec.testing.oracles import verify as checks_of

    registry = _plugins().algorithms
    if bool(names) == every:
        raise ConfigError("verify needs the names of algorithms, or --all")
    rows: list[dict[str, Any]] = []
    with Bars() as progress:
        for name in progress.track(list(registry) if every else names or [], description="verify"):
            rows += [{"algorithm": name, **_checked(check)} for check in checks_of(registry[name])]
    verified = {row["algorithm"] for row in rows}
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        _print_verified(
            rows, without=[name for name in (registry if every else names or ()) if name not in verified]
        )
    if not all(row["passed"] for row in rows):
        raise typer.Exit(1)


def _checked(check: Check) -> dict[str, Any]:
    return {"check": check.name, "error": check.error, "tolerance": check.tolerance, "passed": check.passed}


def _print_verified(rows: Sequence[Mapping[str, Any]], *, without: Sequence[str]) -> None:
    failed = [row for row in rows if not row["passed"]]
    print(f"{len(rows) - len(failed)} of {len(rows)} checks passed.\n")
    shown = [
        {
            "algorithm": row["algorithm"]
            if index == 0 or rows[index - 1]["algorithm"] != row["algorithm"]
            else "",
            "check": row["check"],
            "error": f"{row['error']:.1e}",
            "tolerance": f"{row['tolerance']:.0e}",
            "": "" if row["passed"] else "FAILED",
        }
        for index, row in enumerate(rows)
    ]
    Console().print(_table(shown, fixed=("algorithm", "error", "tolerance", "")))
    if without:
        print(f"\nNo answer is known beforehand of {', '.join(without)}.")


@app.command()
def show(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND", help="What it is: algorithm, metric, dataset, protocol, encoder, reporter."
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called.")],
) -> None:
    """Show what something is: its options, formula and source."""
    from metarec import describe
    from metarec.options import options_of

    registries = {registry.kind: registry for registry in _plugins().registries.values()}
    if kind not in registries:
        raise ConfigError(unknown_name("kind", kind, registries))
    registry = registries[kind]
    thing = registry[name]
    parts = describe.sections(thing)
    console = Console(highlight=False)
    console.print(f"[bold]{escape(name)}[/]: {kind} of plugin {escape(registry.owner(name))}\n")
    _print_text(console, parts.pop(""))
    if isinstance(thing, type):
        _print_facts(console, thing)
        _print_options(console, options_of(thing), describe.parameters(thing))
    for heading, text in parts.items():
        if heading not in ("Parameters", "Attributes"):
            console.print(f"[bold]{escape(heading)}[/]")
            _print_text(console, text)


def _print_text(console: Console, text: str) -> None:
    from metarec.describe import paragraphs

    for paragraph in paragraphs(text):
        console.print(Text(paragraph + "\n"), soft_wrap="\n" in paragraph or paragraph.startswith(" "))


def _print_facts(console: Console, thing: type) -> None:
    """What else a class declares of itself."""
    for name in ("scenarios", "feedback", "is_floor", "lists", "higher_is_better"):
        value = getattr(thing, name, None)
        if value is not None:
            text = ", ".join(value) if isinstance(value, tuple) else {True: "yes", False: "no"}[value]
            console.print(Text(f"{name.replace('_', ' ')}: {text}", style="dim"))


def _print_options(console: Console, options: Sequence[Option], meanings: Mapping[str, str]) -> None:
    console.print("\n[bold]Options[/]" if options else "It has no options.")
    for option in options:
        default = "" if option.default is Parameter.empty else f" = {option.default!r}"
        bounds = f", {_bound(option.range.low)} to {_bound(option.range.high)}" if option.range else ""
        console.print(Text(f"{option.name}: {option.type}{default}{bounds}"))
        console.print(Padding(Text(meanings.get(option.name, "")), (0, 0, 0, 4)))
    console.print()


def _bound(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


@app.command(name="list")
def list_(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="KINDS", help="algorithms, metrics, datasets, …, plugins.", show_default="all"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what there is and which plugin it comes from."""
    plugins = _plugins()
    kinds = {
        **{name: _things(registry) for name, registry in plugins.registries.items()},
        "plugins": _loaded(plugins),
    }
    if kind is not None and kind not in kinds:
        raise ConfigError(unknown_name("kind", kind, kinds))
    wanted = kinds if kind is None else {kind: kinds[kind]}
    if as_json:
        print(json.dumps(wanted if kind is None else wanted[kind], indent=2, ensure_ascii=False))
        return
    for title, rows in wanted.items():
        if rows or kind is not None:
            Console().print(
                _table([_shown(row, plugins) for row in rows], title=title, fixed=("name", "plugin")), ""
            )


def _shown(row: Mapping[str, Any], plugins: PluginManager) -> dict[str, Any]:
    """What people want to see of a row: not the scenarios, which `show` tells, nor that it is built in."""
    hidden = {"scenarios", *(["plugin"] if plugins.is_built_in(row.get("plugin", "")) else [])}
    return {name: "" if name in hidden else value for name, value in row.items()}


def _things(registry: Registry) -> list[dict[str, Any]]:
    from metarec.describe import summary

    return [
        {
            "name": name,
            **{
                fact: list(getattr(thing, fact))
                for fact in ("scenarios", "feedback")
                if registry.kind == "algorithm"
            },
            "summary": summary(thing),
            "plugin": registry.owner(name),
        }
        for name, thing in registry.items()
    ]


def _loaded(plugins: PluginManager) -> list[dict[str, Any]]:
    names = [name for name, plugin in plugins.list_name_plugin() if plugin is not None]
    reasons = {**dict.fromkeys(sorted(names)), **plugins.left_out}
    return [
        {"name": name, "version": plugins.version(name), "left_out": why} for name, why in reasons.items()
    ]


def _table(
    rows: Sequence[Mapping[str, Any]], *, title: str | None = None, fixed: Sequence[str] = ()
) -> Table:
    """One line per row, without the columns that are empty in all; those that are `fixed` are never broken."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    headings = [heading for heading in (rows[0] if rows else ()) if any(_cell(row[heading]) for row in rows)]
    for heading in headings:
        table.add_column(heading, no_wrap=heading in fixed)
    for row in rows:
        table.add_row(*(Text(_cell(row[heading])) for heading in headings))
    return table


def _cell(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else "" if value is None else str(value)
