"""The model: from a scenario to a trace. Firmware core, Xen platform, bus and device drivers, seeded faults."""
