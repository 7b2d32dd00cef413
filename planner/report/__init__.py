"""A plan as a document to read and to send: Markdown or HTML, with its charts. Pure text."""
