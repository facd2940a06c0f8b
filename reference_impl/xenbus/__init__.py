"""The XenBus bus driver, its protocol, the teardown designs, and the device drivers.

`bus_driver` owns the connection and its children, `front_end` is the one state machine of all PV devices, `devices` says
in what the three devices differ. Each file in `designs` is one answer to the question how to let go at ExitBootServices;
nothing else depends on the design.
"""
