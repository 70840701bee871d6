"""FastChat: its MT-Bench files, artifacts as models of its servers, and its modules as commands."""
