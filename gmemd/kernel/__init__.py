"""Every system call and ioctl, one small module per kernel object."""
