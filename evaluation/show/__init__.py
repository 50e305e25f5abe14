"""This room shows what was judged: in a terminal, as Markdown and HTML, in figures. It computes no statistic."""
