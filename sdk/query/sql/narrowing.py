"""Which runs a query needs where it says so by way of `runs`: found first, and written into the query for the scans to see.

DuckDB pushes `run = 'a41f'` into a scan, but not what only a join or a subquery tells. So before a query runs,

    run in (select id from runs where …)        becomes    run in ('07cf', 'a41f')
    metrics m join runs r on m.run = r.id       gets       and m.run in (…), by the conditions on r alone
    where r.state = 'finished' and …

The query is read and written by DuckDB itself, as the JSON of its syntax tree. A subquery is answered once and replaced by its answer.
Conditions are taken only from inner joins of our own relations, and only such as give the same each time. Whatever is not like that
stays as it is: more is read, and the answer is the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# Limit: runs that a query is told by name. With more of them little is left out.
_RUNS_MAX = 2000
# What may be asked of a run twice: each gives the same for the same values.
_STABLE = frozenset(
    "COMPARISON CONJUNCTION CONSTANT COLUMN_REF BETWEEN OPERATOR CAST PARAMETER".split()  # classes of the syntax tree
)
_STABLE_FUNCTIONS = frozenset(
    "+ - * / % ~~ !~~ ~~* !~~* ->> -> lower upper contains starts_with ends_with prefix suffix length list_contains "
    "regexp_matches struct_extract array_extract abs".split()
)

Node = dict[str, Any]
# Answers a query: the rows of its first column; raises what DuckDB does.
Ask = Callable[[str], list[Any]]


def narrowed(query: str, columns: Mapping[str, frozenset[str]], ask: Ask) -> str | None:
    """The query with the runs that it needs in it; None where nothing is found that would help.

    Args:
        columns: Name of each relation of the query, in lower case, to those of its columns.
        ask: As above.
    """
    tree = _tree(query, ask)
    statements = tree.get("statements", [])
    if tree.get("error") or len(statements) != 1:
        return None
    node = statements[0]["node"]
    # Why not with CTEs: one of them may be called `runs`. Nor with collations: an answer that is written out has lost its own.
    if any(_every(node, lambda one: bool(one.get("map")) or one.get("class") == "COLLATE")):
        return None
    changed = sum(_answered(one, ask) for one in _every(node, lambda one: one.get("type") == "SELECT_NODE"))
    changed += sum(_joined(one, columns, ask) for one in _every(node, lambda one: one.get("type") == "SELECT_NODE"))
    if not changed:
        return None
    made = _text(tree, ask)
    # What DuckDB wrote must say what the tree says: it is the query that is then run.
    return made if _bare(_tree(made, ask)) == _bare(tree) else None


def _tree(query: str, ask: Ask) -> Node:
    """The syntax tree of a query; with `error` where there is none."""
    tree: Node = json.loads(ask(f"select json_serialize_sql({_literal(query)}::varchar)")[0])
    return tree


def _bare(node: Any) -> Any:
    """A tree without the places in the text."""
    if isinstance(node, dict):
        return {name: _bare(inner) for name, inner in node.items() if not name.startswith("query_location")}
    return [_bare(inner) for inner in node] if isinstance(node, list) else node


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _text(tree: Node, ask: Ask) -> str:
    return str(ask(f"select json_deserialize_sql({_literal(json.dumps(tree))}::json)")[0])


def _every(node: Any, is_wanted: Callable[[Node], bool]) -> Iterator[Node]:
    """The maps inside a tree that are wanted, itself included."""
    if isinstance(node, dict):
        if is_wanted(node):
            yield node
        for inner in list(node.values()):
            yield from _every(inner, is_wanted)
    elif isinstance(node, list):
        for inner in node:
            yield from _every(inner, is_wanted)


def _condition(text: str, ask: Ask) -> Node:
    """The syntax tree of a condition, as this release of DuckDB writes it."""
    found: Node = _tree(f"select 1 where {text}", ask)["statements"][0]["node"]["where_clause"]
    return found


def _is_run(node: Any) -> bool:
    return isinstance(node, dict) and node.get("class") == "COLUMN_REF" and node["column_names"][-1].lower() == "run"


def _name(reference: Node) -> str:
    return ".".join('"' + name.replace('"', '""') + '"' for name in reference["column_names"])


def _among(reference: Node, runs: list[Any], ask: Ask) -> Node:
    return _condition(f"{_name(reference)} in ({', '.join(map(_literal, runs))})" if runs else "false", ask)


# -- subqueries ----------------------------------------------------------------------------------------------------------


def _answered(select: Node, ask: Ask) -> int:
    """Replaces subqueries that a run is looked for in; how many."""
    changed = 0
    for one in list(_every(select.get("where_clause"), lambda one: True)):
        inner, reference = _looked_in(one)
        # Invariant: asked for alone it must find all its names inside, so it depends on nothing around it.
        if inner is None or reference is None:
            continue
        try:
            runs = ask(_text({"error": False, "statements": [inner]}, ask))
        except Exception:  # Why so broad: whatever cannot be answered alone stays where it is.
            continue
        is_one = one.get("class") == "COMPARISON"
        if len(runs) > _RUNS_MAX or not all(isinstance(run, str) for run in runs) or (is_one and len(runs) != 1):
            continue
        made = _among(reference, sorted(set(runs)), ask)
        one.clear()
        one.update(made)
        changed += 1
    return changed


def _looked_in(node: Node) -> tuple[Node | None, Node | None]:
    """The subquery of `run in (select …)` or `run = (select …)`, and its run."""
    kind, types = node.get("class"), (node.get("type"), node.get("comparison_type"))
    if (
        kind == "SUBQUERY"
        and node.get("subquery_type") == "ANY"
        and "COMPARE_EQUAL" in types
        and _is_run(node.get("child"))
    ):
        return node["subquery"], node["child"]
    if kind == "COMPARISON" and node.get("type") == "COMPARE_EQUAL":
        for one, other in ((node["left"], node["right"]), (node["right"], node["left"])):
            if _is_run(one) and other.get("class") == "SUBQUERY" and other.get("subquery_type") == "SCALAR":
                return other["subquery"], one
    return None, None


# -- joins ---------------------------------------------------------------------------------------------------------------


def _joined(select: Node, columns: Mapping[str, frozenset[str]], ask: Ask) -> int:
    """Adds which runs are needed by the conditions on `runs` alone; 1 where it did."""
    tables: dict[str, str] = {}
    conditions: list[Node] = _parts(select.get("where_clause"))
    if not _inner(select.get("from_table"), tables, conditions) or not set(tables.values()) <= columns.keys():
        return 0
    names = [alias for alias, table in tables.items() if table == "runs"]
    if len(names) != 1 or len(tables) < 2:
        return 0
    (runs,) = names

    def owner(reference: Node) -> str | None:
        path = [name.lower() for name in reference["column_names"]]
        if len(path) > 1 and path[0] in tables:
            return str(path[0])
        holders = [alias for alias, table in tables.items() if path[0] in columns[table]]
        return holders[0] if len(holders) == 1 else None

    of_runs = [one for one in conditions if _is_stable(one) and _owners(one, owner) == {runs}]
    joined = [found for one in conditions if (found := _run_of(one, runs, owner)) is not None]
    if not of_runs or not joined:
        return 0
    alone = {"error": False, "statements": [{"node": _template(runs, of_runs, ask)}]}
    needed = ask(_text(alone, ask))
    if len(needed) > _RUNS_MAX or not all(isinstance(run, str) for run in needed):
        return 0
    made = [_among(reference, sorted(needed), ask) for reference in joined]
    select["where_clause"] = _all([*_parts(select.get("where_clause")), *made], ask)
    return 1


def _inner(table: Any, tables: dict[str, str], conditions: list[Node]) -> bool:
    """Whether a FROM clause is inner joins of tables; notes those by alias, and the conditions of the joins."""
    if not isinstance(table, dict) or table.get("column_name_alias") or table.get("sample"):
        return False
    if table.get("type") == "BASE_TABLE":
        name = str(table.get("table_name", "")).lower()
        alias = str(table.get("alias") or name).lower()
        is_new = alias not in tables
        tables[alias] = name
        return is_new
    if (
        table.get("type") != "JOIN"
        or table.get("join_type") != "INNER"
        or table.get("ref_type") not in ("REGULAR", "CROSS")
    ):
        return False
    conditions += _parts(table.get("condition"))
    return _inner(table["left"], tables, conditions) and _inner(table["right"], tables, conditions)


def _parts(condition: Any) -> list[Node]:
    """What must hold together for a condition to hold."""
    if not isinstance(condition, dict):
        return []
    if condition.get("type") == "CONJUNCTION_AND":
        return [part for child in condition["children"] for part in _parts(child)]
    return [condition]


def _all(conditions: list[Node], ask: Ask) -> Node:
    """Conditions that must hold together as one."""
    if len(conditions) == 1:
        return conditions[0]
    made = _condition("a and b", ask)
    made["children"] = conditions
    return made


def _is_stable(condition: Node) -> bool:
    for one in _every(condition, lambda one: "class" in one):
        if one["class"] == "FUNCTION":
            if one.get("function_name") not in _STABLE_FUNCTIONS:
                return False
        elif one["class"] not in _STABLE or one["class"] == "PARAMETER":
            return False
    return True


def _owners(condition: Node, owner: Callable[[Node], str | None]) -> set[str | None]:
    return {owner(one) for one in _every(condition, lambda one: one.get("class") == "COLUMN_REF")}


def _run_of(condition: Node, runs: str, owner: Callable[[Node], str | None]) -> Node | None:
    """The column `run` of a condition that it is the same as the id of `runs`."""
    if condition.get("class") != "COMPARISON" or condition.get("type") != "COMPARE_EQUAL":
        return None
    for one, other in ((condition["left"], condition["right"]), (condition["right"], condition["left"])):
        is_id = (
            other.get("class") == "COLUMN_REF" and other["column_names"][-1].lower() == "id" and owner(other) == runs
        )
        if is_id and len(other["column_names"]) <= 2 and _is_run(one) and owner(one) not in (None, runs):
            return one if isinstance(one, dict) else None
    return None


def _template(alias: str, conditions: list[Node], ask: Ask) -> Node:
    quoted = '"' + alias.replace('"', '""') + '"'
    node: Node = _tree(f"select {quoted}.id from runs as {quoted} where true", ask)["statements"][0]["node"]
    node["where_clause"] = _all(conditions, ask)
    return node
