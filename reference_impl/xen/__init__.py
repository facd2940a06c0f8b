"""The Xen platform: hypervisor, grant table, event channels, xenstore, backends, the operating system that takes over.

`platform.XenPlatform` puts the parts together. It knows nothing of firmware or drivers: whoever calls it says who it is
(`agent`), and everything that matters is a record in the trace.
"""
