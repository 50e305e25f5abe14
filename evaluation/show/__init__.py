"""Terminal, Markdown, HTML, figures. No statistic is computed here."""
