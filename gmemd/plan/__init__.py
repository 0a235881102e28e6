"""VM specs against a host: strategy per region and admission. Pure."""
