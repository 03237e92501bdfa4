"""From records to tables and figures. Reads result.json only; imports neither torch nor larosa."""
