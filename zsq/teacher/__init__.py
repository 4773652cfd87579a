"""Teachers: a name is parsed, the architecture built and its weights loaded without running their code."""

from zsq.teacher.names import builtin_teachers, load_teacher

__all__ = ["builtin_teachers", "load_teacher"]
