"""What this plugin's tests share with the core's."""

from shared_fixtures import conversations_file, tiny_target, tiny_target_dir

__all__ = ["conversations_file", "tiny_target", "tiny_target_dir"]
