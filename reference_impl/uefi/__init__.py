"""The firmware's core: handles, protocols, driver binding, events, memory and ExitBootServices."""
