"""Pickles as data: nothing that a pickle names is looked up or called.

A pickle is a program for a small machine with a stack. The machine here knows the instructions that
make containers, texts and numbers. Whatever a pickle wants to have called has to be among the
`makers` that its reader passes, and anything else is refused by its name. So there is nothing that
a file could make this execute, and it ends after `MOST_STEPS` instructions.

Like `arrays`, this is tested without JAX, under Python 3.11.
"""

import functools
import pickletools

MOST_STEPS = 2_000_000
"""Instructions of all pickles of a file: about 80,000 tensors, and five seconds."""


class Refused(ValueError):
    """What a pickle asks for is not to be had; the message says what that is."""


class Name(str):
    """What a pickle calls by module and name, such as `"collections.OrderedDict"`."""


class Machine:
    """Reads pickles, one after the other.

    Args:
      makers: What a pickle may have made, by name: functions of the arguments that it gives.
      constants: Names that stand for something themselves, as those of dtypes do. The reader finds
        them as `Name`.
      persistent: Makes what a pickle refers to by an identifier of its own.

    Raises:
      Refused: A pickle needs something else. Of one that is damaged nearly any error may come.
    """

    def __init__(self, makers, constants=frozenset(), persistent=None):
        self._makers = makers
        self._constants = constants
        self._persistent = persistent
        self._steps = 0

    def load(self, file):
        """The next object in a file; leaves the file where its pickle ends."""
        self._stack, self._marks, self._memo = [], [], {}
        while True:
            self._steps += 1
            if self._steps > MOST_STEPS:
                raise Refused(f"has more than {MOST_STEPS:,} instructions")
            name, read = _CODES[file.read(1)]
            argument = read(file) if read else None
            if name in _VALUES:
                self._stack.append(argument)
            elif name in _PUTS:
                self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]
            elif name in _GETS:
                self._stack.append(self._memo[argument])
            elif name == "STOP":
                return self._stack.pop()
            elif name in _STEPS:
                _STEPS[name](self, argument)
            else:
                raise Refused(f"needs an instruction `{name}` of pickles")

    def _since_mark(self):
        """Takes what is on the stack above its last mark."""
        at = self._marks.pop()
        items = self._stack[at:]
        del self._stack[at:]
        return items

    def _named(self, name):
        if name not in self._makers and name not in self._constants:
            raise Refused(f"needs `{name}`, not only tensors and numbers")
        self._stack.append(Name(name))

    def _made(self):
        arguments, name = self._stack.pop(), self._stack.pop()
        if not isinstance(name, Name) or name not in self._makers:
            raise Refused("needs objects, not only tensors and numbers")
        self._stack.append(self._makers[name](*arguments))

    def _append(self, items):
        into = self._stack[-1]
        if type(into) is not list:
            raise Refused("needs objects, not only tensors and numbers")
        into += items

    def _set(self, items):
        into = self._stack[-1]
        if type(into) is not dict:
            raise Refused("needs objects, not only tensors and numbers")
        into.update(zip(items[::2], items[1::2], strict=True))

    # One method for each instruction that is more than a value.

    def _mark(self, _):
        self._marks.append(len(self._stack))

    def _pop(self, _):
        self._stack.pop()

    def _pop_mark(self, _):
        self._since_mark()

    def _tuple(self, _, count=None):
        items = self._since_mark() if count is None else [self._stack.pop() for _ in range(count)]
        self._stack.append(tuple(items if count is None else items[::-1]))

    def _list(self, _):
        self._stack.append(self._since_mark())

    def _dict(self, _):
        items = self._since_mark()
        self._stack.append({})
        self._set(items)

    def _empty(self, _, kind):
        self._stack.append(kind())

    def _append_one(self, _):
        self._append([self._stack.pop()])

    def _append_all(self, _):
        self._append(self._since_mark())

    def _set_one(self, _):
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _set_all(self, _):
        self._set(self._since_mark())

    def _global(self, argument):
        self._named(argument.replace(" ", "."))

    def _stack_global(self, _):
        name, module = self._stack.pop(), self._stack.pop()
        self._named(f"{module}.{name}")

    def _reduce(self, _):
        self._made()

    def _build(self, _):
        # Attributes of a dict are not part of what it holds; nothing else here has some.
        self._stack.pop()
        if type(self._stack[-1]) is not dict:
            raise Refused("needs objects, not only tensors and numbers")

    def _persistent_id(self, _):
        if self._persistent is None:
            raise Refused("needs something outside of itself")
        self._stack.append(self._persistent(self._stack.pop()))

    def _constant(self, _, value):
        self._stack.append(value)

    def _nothing(self, _):
        pass


_CODES = {x.code.encode("latin1"): (x.name, x.arg and x.arg.reader) for x in pickletools.opcodes}
_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES "
    "BINBYTES8".split()
)
_PUTS = frozenset(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET"))
_STEPS = {
    "PROTO": Machine._nothing,
    "FRAME": Machine._nothing,
    "MARK": Machine._mark,
    "POP": Machine._pop,
    "POP_MARK": Machine._pop_mark,
    "NONE": functools.partial(Machine._constant, value=None),
    "NEWTRUE": functools.partial(Machine._constant, value=True),
    "NEWFALSE": functools.partial(Machine._constant, value=False),
    "EMPTY_TUPLE": functools.partial(Machine._empty, kind=tuple),
    "EMPTY_LIST": functools.partial(Machine._empty, kind=list),
    "EMPTY_DICT": functools.partial(Machine._empty, kind=dict),
    "TUPLE": Machine._tuple,
    "TUPLE1": functools.partial(Machine._tuple, count=1),
    "TUPLE2": functools.partial(Machine._tuple, count=2),
    "TUPLE3": functools.partial(Machine._tuple, count=3),
    "LIST": Machine._list,
    "DICT": Machine._dict,
    "APPEND": Machine._append_one,
    "APPENDS": Machine._append_all,
    "SETITEM": Machine._set_one,
    "SETITEMS": Machine._set_all,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._reduce,
    "NEWOBJ": Machine._reduce,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent_id,
}
