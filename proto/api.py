#!/usr/bin/env python3
"""Writes docs/api.md from the comments of the .proto files. With --check, fails if the page is not what they say.

Needs grpcio-tools (PyPI) for its protoc.
"""

import difflib
import pathlib
import re
import sys
import tempfile
import textwrap

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parent
PAGE = PROTO.parent / "docs" / "api.md"
FILES = ["votestream/v1/ingest.proto", "votestream/v1/polls.proto", "votestream/v1/results.proto"]
WIDTH = 120
INTRODUCTION = """
This page is made from the comments in [`proto/votestream/v1`](../proto/votestream/v1) by `proto/api.py`. Change them, not
this page. All services are in the package `votestream.v1`, and speak gRPC and gRPC-Web. The [README](../README.md) has the
JSON routes, and [`examples`](../examples) has clients.
"""
# Numbers of fields in the descriptors, of which the paths of comments consist.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
MEMBERS = 2

Field = descriptor_pb2.FieldDescriptorProto
TYPES = {
    Field.TYPE_STRING: "string",
    Field.TYPE_BOOL: "bool",
    Field.TYPE_UINT32: "uint32",
    Field.TYPE_UINT64: "uint64",
}


def read():
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "descriptors"
        arguments = ["protoc", f"--proto_path={PROTO}", "--include_source_info", f"--descriptor_set_out={out}", *FILES]
        if protoc.main([*arguments, f"--proto_path={protoc_include()}"]) != 0:
            sys.exit("protoc cannot read the .proto files")
        return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file


def protoc_include():
    """Where grpcio-tools has google/protobuf/timestamp.proto."""
    return pathlib.Path(protoc.__file__).parent / "_proto"


KINDS = {
    (False, False): "Unary call.",
    (True, False): "The client sends a stream of requests.",
    (False, True): "The service sends a stream of responses.",
    (True, True): "Client and service send streams at the same time.",
}
STATUSES = "UNAVAILABLE|UNAUTHENTICATED|CANCELLED|UNKNOWN"
# Constants, fields and statuses.
MARKED = re.compile(rf"`[^`]*`|\b[A-Z]+(?:_[A-Z]+)+\b|\b(?:{STATUSES})\b|(?:\b[A-Z]\w*\.)?\b[a-z]+(?:_[a-z]+)+\b")


class Page:
    def __init__(self, files):
        self.lines = ["# API", ""]
        self.files = {file.name: file for file in files}
        self.comments = {
            (file.name, tuple(location.path)): location.leading_comments.strip()
            for file in files
            for location in file.source_code_info.location
        }
        self.types = {}
        for file in files:
            for kind, all_of_kind in ((MESSAGES, file.message_type), (ENUMS, file.enum_type)):
                for at, type_ in enumerate(all_of_kind):
                    self.types[f".{file.package}.{type_.name}"] = (file.name, (kind, at), type_)
        methods = [method for file in files for service in file.service for method in service.method]
        # Requests and responses stand with their method, everything else has a section of its own.
        self.of_methods = {name for method in methods for name in (method.input_type, method.output_type)}

    def render(self):
        self.text(" ".join(INTRODUCTION.split()))
        for file in self.files.values():
            for service in file.service:
                self.item(f"- {link(service.name)}: {', '.join(link(method.name) for method in service.method)}")
        others = [link(short(name)) for name in self.types if name not in self.of_methods]
        self.item(f"- [Messages and enums](#messages-and-enums): {', '.join(others)}")
        self.lines.append("")
        for file in self.files.values():
            for at, service in enumerate(file.service):
                self.service(file, at, service)
        self.heading(2, "Messages and enums")
        for name in self.types:
            if name not in self.of_methods:
                self.heading(3, short(name))
                self.type_(name)
        return "\n".join(self.lines).rstrip("\n") + "\n"

    def service(self, file, at, service):
        self.heading(2, service.name)
        self.comment(file.name, (SERVICES, at))
        for place, method in enumerate(service.method):
            self.heading(3, method.name)
            self.text(KINDS[method.client_streaming, method.server_streaming])
            self.comment(file.name, (SERVICES, at, MEMBERS, place))
            for name in (method.input_type, method.output_type):
                self.lines += [f"**{short(name)}**", ""]
                self.type_(name)

    def type_(self, name):
        file, path, type_ = self.types[name]
        self.comment(file, path)
        values = type_.value if is_enum(type_) else type_.field
        for at, value in enumerate(values):
            what = f"`{value.name}` = {value.number}" if is_enum(type_) else f"`{value.name}`: {self.kind(value)}"
            first, *more = self.paragraphs(file, (*path, MEMBERS, at)) or [""]
            self.item(f"- {what}. {first}".rstrip())
            for paragraph in more:
                self.lines += ["", *wrapped(paragraph, "  ")]
        if values:
            self.lines.append("")

    def kind(self, field):
        if field.type_name in self.types:
            kind = link(short(field.type_name))
        elif field.type_name:
            kind = field.type_name.removeprefix(".google.protobuf.").lower()
        else:
            kind = TYPES[field.type]
        return f"list of {kind}" if field.label == Field.LABEL_REPEATED else kind

    def paragraphs(self, file, path):
        return [self.marked(" ".join(text.split())) for text in self.comments.get((file, path), "").split("\n\n")]

    def comment(self, file, path):
        for paragraph in self.paragraphs(file, path):
            self.text(paragraph)

    def marked(self, text):
        """Marks names of programs, and keeps everything else as it is."""
        escaped = re.sub(r"([*<>\[\]])", r"\\\1", text)
        return MARKED.sub(lambda found: f"`{found[0].strip('`')}`", escaped)

    def heading(self, level, text):
        self.lines += ["#" * level + f" {text}", ""]

    def text(self, text):
        if text:
            self.lines += [*wrapped(text, ""), ""]

    def item(self, text):
        self.lines += wrapped(text, "  ", first="")


def wrapped(text, indent, first=None):
    first = indent if first is None else first
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=indent, break_long_words=False,
                         break_on_hyphens=False)


def is_enum(type_):
    return isinstance(type_, descriptor_pb2.EnumDescriptorProto)


def short(name):
    return name.rpartition(".")[2]


def link(name):
    return f"[{name}](#{name.lower()})"


def main():
    page = Page(read()).render()
    if sys.argv[1:] == ["--check"]:
        before = PAGE.read_text(encoding="utf-8")
        if page != before:
            lines = before.splitlines(), page.splitlines()
            changes = difflib.unified_diff(*lines, "docs/api.md", "the .proto files", n=1, lineterm="")
            sys.exit("\n".join([*changes, "FAILED: docs/api.md is not up to date: run proto/api.py"]))
        print("ok: docs/api.md says what the .proto files say")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        PAGE.write_text(page, encoding="utf-8")


main()
