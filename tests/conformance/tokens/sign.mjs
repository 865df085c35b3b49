// Signs tokens with jose. Writes the keys as a JWKS, and tokens with the HTTP status that each must get, into a folder.
import { writeFileSync } from 'node:fs';
import { exportJWK, generateKeyPair, SignJWT, UnsecuredJWT } from 'jose';

const [folder] = process.argv.slice(2);
const now = Math.floor(Date.now() / 1000);
const iss = 'https://jose.test';
const algorithms = ['ES256', 'ES384', 'EdDSA', 'RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512'];
const keys = [];
const tokens = [];

const claims = { iss, aud: 'votestream', sub: 'ada', iat: now, exp: now + 600, scope: 'vote:p read:p' };
const sign = (alg, kid, key, changes = {}, header = {}) =>
  new SignJWT({ ...claims, ...changes }).setProtectedHeader({ alg, kid, ...header }).sign(key);
const add = (name, status, token) => tokens.push({ name: `jose: ${name}`, status, token });

let first;
for (const alg of algorithms) {
  const { publicKey, privateKey } = await generateKeyPair(alg, { extractable: true });
  first ??= { alg, privateKey };
  keys.push({ ...(await exportJWK(publicKey)), kid: alg, alg, use: 'sig' });
  add(`right, ${alg}`, 200, await sign(alg, alg, privateKey));
  add(`expired, ${alg}`, 401, await sign(alg, alg, privateKey, { exp: now - 60 }));
  const other = await generateKeyPair(alg);
  add(`another key, ${alg}`, 401, await sign(alg, alg, other.privateKey));
}
// HMAC with what everybody can read: the public key as the JWKS has it.
const published = new TextEncoder().encode(JSON.stringify(keys[0]));
add('HMAC with a public key', 401, await sign('HS256', 'ES256', published));
add('critical extension', 401, await sign(first.alg, first.alg, first.privateKey, {}, { crit: ['b64'], b64: true }));
add('another audience', 401, await sign(first.alg, first.alg, first.privateKey, { aud: 'else' }));
add('foreign poll', 403, await sign(first.alg, first.alg, first.privateKey, { scope: 'vote:q' }));
add('none', 401, new UnsecuredJWT(claims).encode());

writeFileSync(`${folder}/jose.jwks.json`, JSON.stringify({ keys }));
writeFileSync(`${folder}/jose.tokens.json`, JSON.stringify(tokens));
