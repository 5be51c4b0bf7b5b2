"""How two models are compared: tensor by tensor (``gap``), as a whole or piece by piece (``pieces``)."""
