"""SGLang as it is: its calls in, the client's calls out. The plug-in is the standard library until SGLang is there."""
