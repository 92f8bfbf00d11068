"""What a gateway's brain saw and decided: kept in memory for a while, in a file on demand, and fed to a brain again."""
