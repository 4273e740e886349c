"""The machine's end of transfers with rsync."""
