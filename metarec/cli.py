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
from rich.table import Table
from rich.text import Text

from metarec import __version__
from metarec.config import RunConfig, read_toml
from metarec.errors import ConfigError, DataError, MetarecError, PluginError, unknown_name

if TYPE_CHECKING:
    from metarec.options import Option
    from metarec.pluginmanager import PluginManager, Registry
    from metarec.serving import Newcomer, Recommendation

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
    config: Annotated[Path | None, typer.Argument(metavar="[CONFIG.toml]", help="What to do; options override it.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set, by its reader's name.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="PATH", help="Where it is; alone: a table of ratings.")] = None,
    protocol: Annotated[str | None, typer.Option(help="How to split it.")] = None,
    algorithms: Annotated[str | None, typer.Option(metavar="A,B", help="What to compare.")] = None,
    scenarios: Annotated[str | None, typer.Option(metavar="A,B", help="Which scenarios.")] = None,
    metrics: Annotated[str | None, typer.Option(metavar="A,B", help="What to measure, such as ndcg_linear@5.")] = None,
    seed: Annotated[list[int] | None, typer.Option(metavar="N", help="May be repeated: one split and fit each.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to compute.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to put reports and artifacts.")] = None,
) -> None:
    """Compare algorithms on data: which one for new users, new items, or both?

    Without arguments: all floors and bayesian on the data set that comes with metarec.
    """
    values = read_toml(config) if config else {}
    given = {
        "dataset": _dataset(values.get("dataset"), dataset, data),
        "protocol": protocol,
        "algorithms": _names(algorithms),
        "scenarios": _names(scenarios),
        "metrics": _names(metrics),
        "seeds": seed or None,
        "device": device,
        "out": out,
    }
    overridden = {name: value for name, value in given.items() if value is not None}
    settings = RunConfig.of(values | overridden, source=str(config) if config else "options")

    from metarec.evaluation import print_summary
    from metarec.experiment import run_experiment
    from metarec.progress import Bars

    with Bars() as progress:
        report = run_experiment(settings, plugins=_plugins(), progress=progress)
    print_summary(report, Console())
    if settings.out is not None:
        print(f"\nReports and artifacts are in {settings.out}. Next: metarec recommend {settings.out}/artifacts/NAME")


def _dataset(configured: Any, name: str | None, path: Path | None) -> dict[str, Any] | None:
    """The data set of the options `--dataset` and `--data`, which keep what they do not name of the configured one."""
    if name is None and path is None:
        return None
    before = {"name": configured} if isinstance(configured, str) else dict(configured or {"name": "table"})
    if name is not None and name != before["name"]:
        before = {"name": name}
    options = dict(before.get("options", {})) | ({} if path is None else {"path": str(path)})
    return before | {"options": options}


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


@app.command()
def recommend(
    artifact: Annotated[Path, typer.Argument(help="Folder of a fitted artifact.")],
    rate: Annotated[list[str] | None, typer.Option(metavar="ITEM=VALUE", help="A rating, by id or title.")] = None,
    attribute: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="What is known of the newcomer.")] = None,
    k: Annotated[int, typer.Option("-k", help="How many.")] = 10,
    side: Annotated[Literal["user", "item"], typer.Option(help="Whether the newcomer is a user or an item.")] = "user",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend to a newcomer, with ± and the ratings that caused it."""
    ratings = {name: _number(value, f"--rate {name}") for name, value in _pairs(rate, "--rate")}
    from metarec.artifact import load

    recommender = load(artifact, plugins=_plugins())
    newcomer = recommender.adapt(ratings, _grouped(_pairs(attribute, "--attribute")), side=side)
    recommended = newcomer.recommend(k)
    if as_json:
        from dataclasses import asdict

        print(json.dumps([_plain(asdict(one)) for one in recommended], indent=2, ensure_ascii=False))
    else:
        Console().print(_recommendations(newcomer, recommended))


def _plain(recommendation: dict[str, Any]) -> dict[str, Any]:
    return recommendation | {"because": [reason._asdict() for reason in recommendation["because"]]}


def _pairs(texts: Iterable[str] | None, option: str) -> list[tuple[str, str]]:
    pairs = []
    for text in texts or ():
        name, equals, value = text.rpartition("=") if option == "--rate" else text.partition("=")
        if not equals or not name:
            raise DataError(f"{option} is {text!r}, expected NAME=VALUE")
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
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(newcomer.partners.side)
    table.add_column("score", justify="right")
    table.add_column("±", justify="right")
    table.add_column("of it unknown", justify="right")
    table.add_column("because")
    for one in recommended:
        reasons = "  ".join(f"{reason.contribution:+.2f} {reason.title}" for reason in one.because[:3])
        table.add_row(Text(one.title), f"{one.score:.2f}", _figure(one.deviation), _figure(one.unknown), Text(reasons))
    return table


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


@app.command()
def show(
    kind: Annotated[str, typer.Argument(help="What it is: algorithm, metric, dataset, protocol, encoder, reporter.")],
    name: Annotated[str, typer.Argument(help="What it is called.")],
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
    console = Console()
    console.print(f"[bold]{escape(name)}[/]  {kind} of plugin {escape(registry.owner(name))}\n", highlight=False)
    console.print(Text(parts.pop("")))
    if isinstance(thing, type):
        console.print(_facts(thing), _options(options_of(thing), describe.parameters(thing)), sep="\n")
    for heading, text in parts.items():
        if heading not in ("Parameters", "Attributes"):
            console.print(f"\n[bold]{escape(heading)}[/]")
            console.print(Text(text))


def _facts(thing: type) -> Text:
    """What else a class declares of itself."""
    facts = {name: getattr(thing, name, None) for name in ("scenarios", "feedback", "higher_is_better", "lists")}
    shown = {name: value for name, value in facts.items() if value is not None}
    lines = [f"{name}: {', '.join(value) if isinstance(value, tuple) else value}" for name, value in shown.items()]
    return Text("\n" + "\n".join(lines) if lines else "", style="dim")


def _options(options: Sequence[Option], texts: Mapping[str, str]) -> Table | str:
    if not options:
        return "It has no options."
    table = Table(title="Options", title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for heading in ("name", "type", "default", "range", "meaning"):
        table.add_column(heading)
    for option in options:
        bounds = f"{option.range.low:g} to {option.range.high:g}" if option.range else ""
        default = "(required)" if option.default is Parameter.empty else repr(option.default)
        table.add_row(*map(Text, (option.name, option.type, default, bounds, texts.get(option.name, ""))))
    return table


@app.command(name="list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="algorithms, metrics, datasets, …, plugins; default: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what there is and which plugin it comes from."""
    plugins = _plugins()
    kinds = {**{name: _things(registry) for name, registry in plugins.registries.items()}, "plugins": _loaded(plugins)}
    if kind is not None and kind not in kinds:
        raise ConfigError(unknown_name("kind", kind, kinds))
    wanted = kinds if kind is None else {kind: kinds[kind]}
    if as_json:
        print(json.dumps(wanted if kind is None else wanted[kind], indent=2, ensure_ascii=False))
        return
    for title, rows in wanted.items():
        if rows or kind is not None:
            Console().print(_listing(title, rows))


def _things(registry: Registry) -> list[dict[str, Any]]:
    from metarec.describe import summary

    return [
        {
            "name": name,
            **{fact: list(getattr(thing, fact)) for fact in ("scenarios", "feedback") if registry.kind == "algorithm"},
            "summary": summary(thing),
            "plugin": registry.owner(name),
        }
        for name, thing in registry.items()
    ]


def _loaded(plugins: PluginManager) -> list[dict[str, Any]]:
    names = [name for name, plugin in plugins.list_name_plugin() if plugin is not None]
    reasons = {**dict.fromkeys(sorted(names)), **plugins.left_out}
    return [{"name": name, "version": plugins.version(name), "left_out": why} for name, why in reasons.items()]


def _listing(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for heading in rows[0] if rows else ():
        table.add_column(heading, no_wrap=heading == "name")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    return table


def _cell(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else "" if value is None else str(value)
