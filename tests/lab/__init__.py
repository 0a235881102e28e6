"""The lab: a hypervisor with four NUMA nodes, emulated, so that it runs on any machine.

``python -m tests.lab run -- COMMAND`` boots it, runs COMMAND as root inside and leaves with its
exit code; ``shell`` gives a terminal in it; ``build`` makes its image. The checkout is inside at
`tests.lab.running.CHECKOUT`.
"""
