"""Settings as YAML, read so that nothing a user has written is lost in silence."""

from collections.abc import Hashable
from typing import Any

import yaml


class _Once(yaml.SafeLoader):
    """YAML's plain values; a key stands once in its mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.MarkedYAMLError(None, None, f"{twice[0]} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _WithoutAliases(_Once):
    """Without its references to what stands elsewhere, by which a short text can become a very long one."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            where = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(None, None, "an alias: write out what it stands for", where)
        return super().compose_node(parent, index)


def read_yaml(text: str, *, aliases: bool = True) -> Any:
    """The values of one document. ValueError, one line, for text that is none, for a key that stands twice, and, unless
    allowed, for an alias."""
    try:
        return (_Once if aliases else _WithoutAliases)(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ValueError(f"{error.problem or error.context}{where}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
