"""Pictures and pages for people: plots that go inline into asset metadata, and self-contained HTML reports."""
