"""report.html: one file with everything in it, tables that sort, figures, and every answer beside another's."""
