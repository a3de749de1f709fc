#!/usr/bin/env python3
"""Writes schemas.txt: what the operator definitions that onnxruntime registers
say about inputs, outputs, attributes and types.

    python3 schemas.py > schemas.txt        (needs the package onnxruntime)

Lines: "set ID TYPE ..." names a set of types; then, per version of an operator,
DOMAIN NAME SINCE MIN-MAX inputs MIN-MAX outputs PORTS PORTS VARIABLES ATTRIBUTES
with "-" for nothing, "?" behind an optional port, "*" behind a variadic one and
"~" behind one of mixed types, "!" behind a required attribute; a deprecated
version is just "deprecated"."""
from onnxruntime.capi import onnxruntime_pybind11_state as ort

sets = {}


def set_id(types):
    return sets.setdefault(tuple(sorted(types)), len(sets))


def ports(ps):
    out = []
    for p in ps:
        mark = {"Optional": "?", "Variadic": "*"}.get(p.option.name, "")
        out.append(p.typeStr.replace(" ", "") + mark + ("" if p.isHomogeneous else "~"))
    return ";".join(out) or "-"


lines = []
for s in ort.get_all_operator_schema():
    if s.domain not in ("", "ai.onnx.ml", "com.microsoft"):
        continue
    head = f"{s.domain or 'ai.onnx'} {s.name} {s.since_version}"
    if s.deprecated:
        lines.append((s.domain, s.name, s.since_version, head + " deprecated"))
        continue
    span = lambda a, b: f"{a}-{'' if b > 1 << 20 else b}"
    cons = ",".join(f"{c.type_param_str}={set_id(c.allowed_type_strs)}" for c in s.type_constraints) or "-"
    attrs = ",".join(f"{n}:{int(a.type)}{'!' if a.required else ''}" for n, a in sorted(s.attributes.items())) or "-"
    lines.append((s.domain, s.name, s.since_version, " ".join([
        head, span(s.min_input, s.max_input), span(s.min_output, s.max_output), ports(s.inputs), ports(s.outputs), cons, attrs])))
for types, i in sets.items():
    print("set", i, *(t.replace(" ", "") for t in types))
for l in sorted(lines):
    print(l[3])
