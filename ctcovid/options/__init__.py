"""Every option, declared once: torch-free, and read by help, settings files, completion, run cards and the manual."""
