"""What people look at: tables, pictures with captions, the summary of a run."""
