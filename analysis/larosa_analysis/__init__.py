"""From records to tables, figures and one report. Reads records alone; imports neither torch nor larosa."""
