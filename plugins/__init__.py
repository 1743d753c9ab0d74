"""The built-in plugins, written exactly as anyone would write theirs."""
