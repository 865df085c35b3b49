"""Signs tokens with PyJWT. Writes the keys as a JWKS, and tokens with the HTTP status that each must get, into a folder."""

import json
import sys
import time

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

folder, now = sys.argv[1], int(time.time())
ISS = "https://pyjwt.test"
small, large = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 4096)
private = {
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    "RS256": small, "RS384": large, "RS512": small, "PS256": large, "PS384": small, "PS512": large,
    "HS256": b"0123456789abcdef0123456789abcdef",
}
keys, tokens = [], []
for name, key in private.items():
    algorithm = get_default_algorithms()[name]
    jwk = algorithm.to_jwk(key if name == "HS256" else key.public_key(), as_dict=True)
    keys.append({**jwk, "kid": name, "alg": name})


def claims(**changes):
    all_claims = {"iss": ISS, "aud": "votestream", "sub": "ada", "iat": now, "exp": now + 600, "scope": "vote:p read:p"}
    all_claims.update(changes)
    return {name: value for name, value in all_claims.items() if value is not None}


def token(name, status, algorithm="ES256", headers=None, key=None, **changes):
    signed = jwt.encode(claims(**changes), key or private[algorithm], algorithm, headers={"kid": algorithm, **(headers or {})})
    tokens.append({"name": f"PyJWT: {name}", "status": status, "token": signed})


for name in private:
    token(f"right, {name}", 200, name)
    token(f"expired, {name}", 401, name, exp=now - 60)
token("not yet valid", 401, nbf=now + 600)
token("another audience", 401, aud=["x", "y"])
token("several audiences", 200, aud=["x", "votestream"])
token("another issuer", 401, iss="https://else.test")
token("unknown key", 401, headers={"kid": "none"})
token("the key of another algorithm", 401, headers={"kid": "RS256"})
token("a key of somebody else", 401, key=ec.generate_private_key(ec.SECP256R1()))
token("HMAC with another secret", 401, "HS256", key=b"fedcba9876543210fedcba9876543210")
token("foreign poll", 403, scope="vote:q")
token("no scope", 403, scope=None)
token("fractions of a second", 200, exp=now + 600.5)
tokens.append({"name": "PyJWT: none", "status": 401, "token": jwt.encode(claims(), None, "none")})

json.dump({"keys": keys}, open(f"{folder}/pyjwt.jwks.json", "w"))
json.dump(tokens, open(f"{folder}/pyjwt.tokens.json", "w"))
