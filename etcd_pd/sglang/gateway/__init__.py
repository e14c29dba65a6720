"""SGLang's bootstrap protocol over HTTP, answered from the registry: for engines that run without the plug-in."""
