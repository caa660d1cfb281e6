"""What ends an emulation."""


class Unknown(NotImplementedError):
    """PTX that the emulator does not know: it has to learn it before anything is claimed."""


class Fault(RuntimeError):
    """What a GPU would refuse, or does not define."""
