"""torchvision's compiled part wants CUDA's torch and stays unloaded; this module only describes its operators."""

import sys
import types

sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
