"""Vision-language models behind one protocol: in this process, behind a server, or scripted."""
