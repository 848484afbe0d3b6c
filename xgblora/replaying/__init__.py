"""A tape or a ledger turned into weights again; and the beginning of a tape.

The room is not called `replay` because `xgblora.replay` is the public function: importing a package of that name would
put it in the function's place.
"""

from xgblora.replaying.from_ledger import rebuild
from xgblora.replaying.from_tape import replay
from xgblora.replaying.recording import start_tape

__all__ = ["rebuild", "replay", "start_tape"]
