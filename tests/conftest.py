"""What all tests share: helpers (`from rollout.toy import ToyDenoiser`), and no deadline on a busy machine."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")
