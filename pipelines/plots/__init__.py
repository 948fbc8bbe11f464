"""Pictures and pages: figures, contact sheets and self-contained HTML, shared by the report of every stage."""
