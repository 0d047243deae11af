"""What this plugin's tests share with the core's."""

from shared_fixtures import conversations_file, family_dir, tiny_target, tiny_target_dir

__all__ = ["conversations_file", "family_dir", "tiny_target", "tiny_target_dir"]
