"""Training of drafts: data, teacher, recipe, trainer, export, report; one file per kind of draft."""
