"""A page in the browser, on this machine alone: drop a recording, look, listen, read, download.

- `view`: from an uploaded file to what is shown, as HTML; it knows no server
- `page`: the server around it, by gradio: upload, progress, and forgetting
"""
