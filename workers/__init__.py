"""What runs beside the model: replica actors, their engines and the session that gateways hold with them."""
