"""THE ORACLE: the bundled server; it shares no encoder or parser with client/."""
