"""SEND and OBSERVE: the only room that opens sockets to a target."""
